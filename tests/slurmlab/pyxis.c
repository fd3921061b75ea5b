/* The options of pyxis for srun, without enroot: the task enters an image that is a squashfs file or a folder.
 *
 * As in the real one (NVIDIA/pyxis, README.md): the options and which values they reject, the image's environment
 * (etc/environment) overriding the task's except for --container-env, a read-only root, mount points created on demand,
 * and the node's /tmp, /dev, /proc and /sys. Images in a registry are rejected, because only enroot can fetch them.
 *
 *     gcc -shared -fPIC -o pyxis.so pyxis.c;  plugstack.conf: required /path/of/pyxis.so
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(pyxis, 1)

enum { IMAGE, MOUNTS, WORKDIR, ENV, HOME, NO_HOME, WRITABLE, READONLY, COUNT };
static const char *const names[COUNT] = {"container-image",         "container-mounts",   "container-workdir",
                                         "container-env",           "container-mount-home", "no-container-mount-home",
                                         "container-writable",      "container-readonly"};
static char *given[COUNT];

static int fail(const char *format, ...)
{
    char text[2 * PATH_MAX];
    va_list rest;
    va_start(rest, format);
    vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    slurm_error("pyxis: %s", text);
    return -1;
}

/* SRC[:DST[:FLAGS]], each of the first two absolute; flags are joined by "+". Cuts the entry in place. */
static int split_mount(char *entry, char **source, char **target, char **flags)
{
    *source = strsep(&entry, ":");
    *target = entry ? strsep(&entry, ":") : *source;
    *flags = entry ? entry : "";
    return **source == '/' && **target == '/' ? 0 : fail("--container-mounts: invalid format: %s", *source);
}

static int check(int option, const char *value)
{
    char *copy, *rest, *part, *source, *target, *flags;
    if (option == IMAGE && strpbrk(value, "@#:"))
        return fail("--container-image: %s is in a registry, and there is no enroot here", value);
    if (option != MOUNTS && option != ENV)
        return 0;
    rest = copy = strdup(value);
    while ((part = strsep(&rest, ",")) != NULL)
        if (!*part || (option == MOUNTS && split_mount(part, &source, &target, &flags)))
            return fail("--%s: invalid format: %s", names[option], value);
    free(copy);
    return 0;
}

/* Slurm calls this in srun and again on the node. */
static int take(int option, const char *value, int remote)
{
    (void)remote;
    if (value != NULL && !*value)
        return fail("--%s: argument required", names[option]);
    if (given[option] && value && strcmp(given[option], value))
        return fail("--%s specified multiple times", names[option]);
    given[option] = strdup(value ? value : "yes");
    if (given[HOME] && given[NO_HOME])
        return fail("both --container-mount-home and --no-container-mount-home were specified");
    return value ? check(option, value) : 0;
}

int slurm_spank_init(spank_t task, int count, char **words)
{
    (void)count, (void)words;
    for (int option = 0; option < COUNT; option++) {
        struct spank_option entry = {(char *)names[option], "VALUE", "[pyxis] see NVIDIA/pyxis",
                                     option < HOME,         option,  take};
        if (spank_option_register(task, &entry) != ESPANK_SUCCESS)
            return fail("cannot register --%s", names[option]);
    }
    return 0;
}

static int run(char *const words[])
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        execvp(words[0], words);
        _exit(127);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid ? status : -1;
}

/* Create PATH with its parents: a folder if SOURCE is one, else an empty file. */
static void make_like(const char *source, const char *path)
{
    struct stat seen;
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(copy, 0755);
        *slash = '/';
    }
    if (stat(source, &seen) == 0 && S_ISDIR(seen.st_mode))
        mkdir(path, 0755);
    else
        close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
}

static int attach(const char *root, const char *source, const char *target, const char *flags)
{
    char place[PATH_MAX];
    snprintf(place, sizeof place, "%s%s", root, target);
    make_like(source, place);
    if (mount(source, place, NULL, MS_BIND | MS_REC, NULL))
        return fail("cannot mount %s: %s", source, strerror(errno));
    if (strstr(flags, "ro") && mount(NULL, place, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL))
        return fail("cannot mount %s read-only: %s", source, strerror(errno));
    return 0;
}

/* Put a layer in memory over the image, so that mount points can be created in it. */
static int lay(const char *scratch, char *root)
{
    char image[PATH_MAX], upper[PATH_MAX], work[PATH_MAX], options[4 * PATH_MAX];
    struct stat seen;
    if (stat(given[IMAGE], &seen))
        return fail("%s: %s", given[IMAGE], strerror(errno));
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("pyxis", scratch, "tmpfs", 0, NULL))
        return fail("cannot create a mount namespace: %s", strerror(errno));
    snprintf(image, sizeof image, "%s/image", scratch);
    snprintf(upper, sizeof upper, "%s/upper", scratch);
    snprintf(work, sizeof work, "%s/work", scratch);
    snprintf(root, PATH_MAX, "%s/root", scratch);
    if (mkdir(image, 0755) || mkdir(upper, 0755) || mkdir(work, 0755) || mkdir(root, 0755))
        return fail("%s: %s", scratch, strerror(errno));
    char *loop[] = {"mount", "-t", "squashfs", "-o", "loop,ro", given[IMAGE], image, NULL};
    if (S_ISDIR(seen.st_mode) ? mount(given[IMAGE], image, NULL, MS_BIND, NULL) : run(loop))
        return fail("%s is neither a squashfs file nor a folder", given[IMAGE]);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", image, upper, work);
    return mount("pyxis", root, "overlay", 0, options) ? fail("overlay: %s", strerror(errno)) : 0;
}

static int attach_all(spank_t task, const char *root)
{
    static const char *const kernel[] = {"/proc", "/sys", "/dev", "/tmp", "/etc/hosts", "/etc/resolv.conf"};
    char *rest, *part, *source, *target, *flags;
    for (size_t i = 0; i < sizeof kernel / sizeof *kernel; i++)
        if (attach(root, kernel[i], kernel[i], ""))
            return -1;
    /* Sites may mount the home folder by default; --no-container-mount-home turns that off. */
    char home[PATH_MAX];
    if (!given[NO_HOME] && spank_getenv(task, "HOME", home, sizeof home) == ESPANK_SUCCESS && attach(root, home, home, ""))
        return -1;
    rest = given[MOUNTS] ? strdup(given[MOUNTS]) : NULL;
    while ((part = strsep(&rest, ",")) != NULL)
        if (split_mount(part, &source, &target, &flags) || attach(root, source, target, flags))
            return -1;
    return given[WRITABLE] ? 0 : mount(NULL, root, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL);
}

static int is_kept(const char *name)
{
    size_t length = strlen(name);
    for (const char *at = given[ENV]; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == length && !strncmp(at, name, length))
            return 1;
    return 0;
}

static void import_environment(spank_t task)
{
    char line[PATH_MAX], *value;
    FILE *file = fopen("/etc/environment", "r");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        value = line;
        char *name = strsep(&value, "=");
        char before[16];
        if (value && !(is_kept(name) && spank_getenv(task, name, before, sizeof before) != ESPANK_ENV_NOEXIST))
            spank_setenv(task, name, value, 1);
    }
    if (file)
        fclose(file);
}

int slurm_spank_task_init(spank_t task, int count, char **words)
{
    char root[PATH_MAX];
    (void)count, (void)words;
    if (!given[IMAGE])
        return 0;
    if (lay("/mnt", root) || attach_all(task, root))
        return -1;
    if (chroot(root) || chdir(given[WORKDIR] ? given[WORKDIR] : "/"))
        return fail("cannot enter %s: %s", given[IMAGE], strerror(errno));
    import_environment(task);
    return 0;
}
